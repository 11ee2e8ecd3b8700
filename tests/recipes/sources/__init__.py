"""The published runs, one file for each paper or group of papers."""

from tests.recipes.sources import dapo, justrl, prorl, questa, simplerl_zoo

SYSTEMS = (*justrl.SYSTEMS, *simplerl_zoo.SYSTEMS, *prorl.SYSTEMS, questa.SYSTEM, dapo.SYSTEM)
RUNS = {name: run for system in SYSTEMS for name, run in system.runs.items()}
