"""How many hits can be among the rejected events: draw, labels, bound, certificate."""
