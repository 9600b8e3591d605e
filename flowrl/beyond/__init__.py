"""Past the paper's two limits: a flow whose score is exact, chains where few actions are valid, values of all draws."""
