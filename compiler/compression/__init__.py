"""What a network can lose: channels, ranks and resolution, chosen for the whole network within one budget.

`importance` and `elimination` order the channels of a group, `sensitivity` says how much the outputs move with the
error of a layer, `costs` what a layer costs as its width changes, and `budget` chooses; `pruning` removes channels,
`reconstruct` fits the weights that stay, and `branches` leaves residual branches out. `measured` says what all these
ways cost the outputs, `pricing` what they save and which to take, and `network` takes them. `structured` is what the
passes that prune share, and `resolution` lets a network compute on smaller images.
"""
