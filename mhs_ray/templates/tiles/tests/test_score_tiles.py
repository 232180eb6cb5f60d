import numpy

from main import best_of, score_tiles, squares


def test_each_tile_has_a_score():
    assert score_tiles(numpy.zeros((5, 64, 64, 3), numpy.uint8)).shape == (5,)


def test_the_best_tiles_become_squares():
    tiles = numpy.zeros((3, 8, 8, 3), numpy.uint8)
    tiles[1, ..., 0] = 200
    found, count = best_of([(tiles, [0, 8, 16], [0, 0, 0])])
    assert count == 3
    feature = squares(found, 8)[0]
    assert feature["geometry"]["coordinates"][0][0] == [8, 0]
    assert feature["properties"]["annotation_type"] == "tile"
