"""From experiments.yaml to figures: settings, runs, records, statistics, plots."""
