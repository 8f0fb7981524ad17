"""From a posterior to the settings of a run, each with its reason."""
