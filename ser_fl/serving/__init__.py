"""`ser-fl serve`: a page on this machine to hear a clip, attack it, and see a model change its mind."""
