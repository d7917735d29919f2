"""Data for calibration, training and accuracy: .npz files and folders of images, read a batch at a time.

Whatever the source, a model sees the same thing: `Dataset.batches` yields one array per graph input, preprocessed as
the recipe's [data.preprocess] says, in the order of the file, of labels.csv, or of the sorted class folders.
"""

from nnc.data.dataset import Dataset
from nnc.data.folder import IMAGE_SUFFIXES, listed
from nnc.data.images import Images
from nnc.data.preprocess import Preprocess

__all__ = ["IMAGE_SUFFIXES", "Dataset", "Images", "Preprocess", "listed"]
