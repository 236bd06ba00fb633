"""Checks of a running installation that an operator can ask for at any time; none of them changes anything that stays."""
