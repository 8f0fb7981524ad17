"""Models and parameters of other libraries; each of these modules needs its own optional extra."""
