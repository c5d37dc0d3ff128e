"""What the commands share: flags in, one-line errors, progress, exit codes."""
