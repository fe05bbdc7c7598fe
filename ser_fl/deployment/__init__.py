"""The two daemons of a federation across machines, the keys they trust, and the file a submitter needs.

``keys`` makes certificates and node keys; ``Link`` (the SuperLink) runs where the server is, ``Node`` (a SuperNode)
where recordings are. Both start Flower's own programs, and nothing here knows what the federation computes.
"""
