"""The policy artefact: what maps an observation to an action, on disk and at run time."""
