"""The benchmark doubting itself: signs that its own figures are not what they seem, told in words.

`records` looks for them in the figures alone, which `comparison` reads; `probes` runs something small on the model, by
the experiments of `trial`; `report` holds what comes of both.
What is looked for follows the checklists of Carlini et al. 2019 (arXiv 1902.06705) and of Athalye et al. 2018
(arXiv 1802.00420, section 3.1).
"""
