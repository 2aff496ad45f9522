import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from ig_core.images.sets import (
    ImageDataset,
    ImageSet,
    contact_sheet,
    from_uint8,
    read_images,
    to_uint8,
    write_images,
)


def image_set(count=5, shape=(3, 2, 4), first=0):
    generator = torch.Generator().manual_seed(first)
    pixels = torch.randint(256, (count, *shape), generator=generator, dtype=torch.uint8)
    index = torch.arange(first, first + count)
    return ImageSet(index, index % 3, pixels)


def assert_same(a, b):
    for name in ("index", "label", "image"):
        ours, theirs = getattr(a, name), getattr(b, name)
        assert ours.dtype == theirs.dtype, name
        assert torch.equal(ours, theirs), name


@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 2, 4), (4, 1, 1)])
@pytest.mark.parametrize("count", [1, 5])
def test_parquet_round_trip_keeps_index_label_and_pixels(tmp_path, count, shape):
    images = image_set(count, shape, first=2**33)
    write_images(tmp_path / "a.parquet", images)
    assert_same(read_images([tmp_path / "a.parquet"]), images)


def test_images_that_are_not_contiguous_are_written_as_they_look(tmp_path):
    whole = image_set()
    view = ImageSet(whole.index, whole.label, whole.image.transpose(2, 3))
    write_images(tmp_path / "a.parquet", view)
    assert torch.equal(read_images([tmp_path / "a.parquet"]).image, view.image)


def test_files_are_read_one_after_another_in_the_order_given(tmp_path):
    parts = [image_set(3, first=10), image_set(2, first=0)]
    paths = [tmp_path / f"{number}.parquet" for number in range(2)]
    for path, part in zip(paths, parts, strict=True):
        write_images(path, part)
    assert_same(read_images(paths), ImageSet.cat(parts))
    assert read_images(paths).index.tolist() == [10, 11, 12, 0, 1]


def test_images_read_are_writable_tensors(tmp_path):
    write_images(tmp_path / "a.parquet", image_set())
    images = read_images([tmp_path / "a.parquet"])
    images.image.zero_()
    images.index.add_(1)


def test_equal_sets_are_equal_files(tmp_path):
    for name in ("a", "b"):
        write_images(tmp_path / name, image_set())
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def cut_in_half(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def drop_shape(path):
    pq.write_table(pq.read_table(path).replace_schema_metadata(None), path)


def drop_pixels(path):
    pq.write_table(pq.read_table(path).drop_columns(["image"]), path)


def change_shape(path):
    pq.write_table(pq.read_table(path).replace_schema_metadata({"shape": "3,9,9"}), path)


def write_foreign_table(path):
    pq.write_table(pa.table({"x": [1, 2]}), path)


@pytest.mark.parametrize(
    "damage",
    [
        lambda path: path.unlink(),
        lambda path: path.write_bytes(b""),
        lambda path: path.write_text("index,label,image"),
        cut_in_half,
        drop_shape,
        drop_pixels,
        change_shape,
        write_foreign_table,
    ],
    ids=["missing", "empty", "text", "truncated", "no shape", "no pixels", "shape", "foreign"],
)
def test_broken_file_is_an_error_that_names_it(tmp_path, damage):
    good, broken = tmp_path / "good.parquet", tmp_path / "broken.parquet"
    for path in (good, broken):
        write_images(path, image_set())
    damage(broken)
    with pytest.raises(ValueError, match=r"broken\.parquet is not an image set"):
        read_images([good, broken])


def test_all_grey_levels_survive_the_way_to_floats_and_back():
    levels = torch.arange(256).to(torch.uint8)
    floats = from_uint8(levels)
    assert floats.dtype == torch.float32
    assert (float(floats.min()), float(floats.max())) == (-1.0, 1.0)
    assert torch.equal(to_uint8(floats), levels)


@pytest.mark.parametrize("offset", [-0.49, 0.49])
def test_pixels_are_rounded_to_the_nearest_level(offset):
    levels = torch.arange(1, 255)
    x = (levels + offset) / 127.5 - 1
    assert torch.equal(to_uint8(x), levels.to(torch.uint8))


def test_pixels_outside_the_range_are_clamped():
    x = torch.tensor([-100.0, -1.001, 1.001, 100.0])
    assert to_uint8(x).tolist() == [0, 0, 255, 255]


def test_dataset_gives_floats_and_labels_of_the_rows_asked():
    images = image_set()
    dataset = ImageDataset(images)
    x, y = dataset.batch(torch.tensor([4, 0, 4]))
    assert len(dataset) == 5
    assert torch.equal(x, from_uint8(images.image[[4, 0, 4]]))
    assert y.tolist() == [1, 0, 1]


def test_contact_sheet_lays_images_out_in_rows_with_gaps():
    images = torch.arange(3, dtype=torch.uint8).view(3, 1, 1, 1).expand(3, 1, 2, 1)
    sheet = contact_sheet(images, columns=2, gap=9)
    assert sheet.dtype == torch.uint8
    assert sheet.tolist() == [
        [
            [0, 9, 1, 9],
            [0, 9, 1, 9],
            [9, 9, 9, 9],
            [2, 9, 9, 9],
            [2, 9, 9, 9],
            [9, 9, 9, 9],
        ]
    ]


def test_contact_sheet_repeats_every_pixel_zoom_times():
    images = image_set(4, (3, 2, 3)).image
    small, large = contact_sheet(images, 2), contact_sheet(images, 2, zoom=3)
    assert large.shape == (3, 18, 24)
    assert torch.equal(large[:, ::3, ::3], small)
    assert torch.equal(large[:, 2::3, 1::3], small)


def test_contact_sheet_of_fewer_images_than_columns_fills_with_gap():
    sheet = contact_sheet(torch.zeros(1, 1, 2, 2, dtype=torch.uint8), columns=3)
    assert sheet.shape == (1, 3, 9)
    assert bool((sheet[:, :, 3:] == 255).all())
