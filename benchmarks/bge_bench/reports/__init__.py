"""Tables and plots of what the experiments measured. Used by `cli`."""
