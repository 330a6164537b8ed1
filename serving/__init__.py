"""The BentoML service that answers observations with actions."""
