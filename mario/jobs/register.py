"""Register: make the policy of a run a version, completely or not at all."""

from __future__ import annotations

from mario.config.levels import model_name
from mario.errors import RegistryError
from mario.jobs.context import JobContext
from mario.store.records import RegisteredVersion

#: The folder of the exported artefact inside a run's folder.
ARTEFACT_FOLDER = "policy"


def register_run(run_id: str, context: JobContext) -> RegisteredVersion:
    """Register the artefact of a run and set the alias `challenger` to it.

    Registering the same run again returns the same version.

    Raises:
        StoreError: there is no such run.
        RegistryError: the run has no policy.
        ArtefactError: its artefact is broken.
    """
    store, registry = context.store, context.registry
    run = store.runs.get(run_id)
    folder = context.settings.run_dir(run_id) / ARTEFACT_FOLDER
    if not folder.is_dir():
        raise RegistryError(
            f"run {run_id} ({run.status}) has no policy in {folder}; expected a run that "
            "finished; resume it with `mario train --resume`"
        )
    model = model_name(run.task)
    row = registry.register(model, folder, run_id=run_id)
    assert row.version is not None, "a complete registration has a number"
    champion = store.ledger.champion(model)
    if champion is None or champion.version != row.version:
        registry.set_challenger(model, row.version)
    return row
