"""What can I do with a model that is trained? One file a use: measure a folder of images from elsewhere (`score`),
also against published statistics (`reference`), ask whether samples show what rows of a table say (`agreement`),
compare samplers and grids (`solvers`), or averages of the weights (`average_scan`); take what the denoiser has inside
as features (`features`), and see what they are good for (`probe`).

How a model samples is in `generate/`, what is measured in `evaluation/`.
"""
