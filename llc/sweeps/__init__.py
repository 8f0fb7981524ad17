"""Many posteriors with one program: checkpoints, components and settings, compared at one scale."""
