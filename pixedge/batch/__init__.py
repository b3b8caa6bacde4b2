"""``pixedge batch``: many questions to one model, each answer a line of JSON."""
