"""PETSeg inside other software: load the model once, segment any number of scans from any number of threads."""

import sys

from petseg_runtime import Segmenter, read_volume

segmenter = Segmenter()
for path in sys.argv[1:]:
    segmentation = segmenter.segment(read_volume(path))
    tumour = segmentation.statistics.tumour
    print(f"{path}: {len(segmentation.lesions)} lesions, {tumour.mtv_ml:.1f} ml, SUVmax {tumour.suv_max}")
