"""Paths between two models in weight space: straight lines and curves fitted for low loss."""
