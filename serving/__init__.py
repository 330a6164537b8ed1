"""The BentoML service that answers observations with the champion's actions."""
