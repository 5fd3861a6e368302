"""How alike models are by their weights alone, whatever made them; see :mod:`zoarium.measure.similarity.weights`."""

from zoarium.measure.similarity.weights import WeightSimilarity, weight_similarity, weight_similarity_result

__all__ = ["WeightSimilarity", "weight_similarity", "weight_similarity_result"]
