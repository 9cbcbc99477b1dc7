"""The Pareto front of points, of whose values more is better."""

from collections.abc import Sequence


def front(points: Sequence[tuple[float, ...]]) -> list[bool]:
    """Says of each point whether it is on the front: no other is as good and somewhere better."""

    def beaten(point: tuple[float, ...]) -> bool:
        return any(
            other != point and all(o >= p for o, p in zip(other, point, strict=True))
            for other in points
        )

    return [not beaten(point) for point in points]


def line(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """Lists the different points of the front, by their first value."""
    return sorted({point for point, best in zip(points, front(points), strict=True) if best})
