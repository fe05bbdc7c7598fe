"""Tables, figures and one self-contained page, drawn from the files of run folders alone: no model, no torch."""
