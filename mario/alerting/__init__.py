"""Every alert rule and dashboard panel, declared once and rendered into monitoring/ and docs/."""
