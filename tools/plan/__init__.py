"""Plans a run for TPUs that are not there: compiled from shapes alone, on a CPU."""
