"""Tables, numbers and figures, the same in every command's output."""
