"""What tests share: models, traces, run folders, pages, machines."""
