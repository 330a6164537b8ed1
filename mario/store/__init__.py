"""One SQL database: runs, episodes, evaluations, verdicts, promotions."""
