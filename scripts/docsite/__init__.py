"""What `make docs` makes of the code: reference pages, cards, tutorials that are run, and checks of the built site."""
