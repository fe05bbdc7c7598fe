"""The same rounds on Flower: a ServerApp and a ClientApp around the functions that the local loop calls.

Nothing but numbers and text crosses between hosts: tensors as Flower's array records, everything else as JSON, both
checked before they are used. Audio and features stay where they are; the server sees names of speakers, counts, sums
over features, models and confusion matrices.
"""
