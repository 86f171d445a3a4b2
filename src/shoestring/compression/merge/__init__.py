"""An adapter folded into its base, also where the base keeps its matrices in few bits or as factors."""
