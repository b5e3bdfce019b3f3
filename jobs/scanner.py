"""Render synthetic scans: X-ray images that look real, with the truth written beside them."""

from visao_ray.bases.scanner.job import render_scans
from visao_ray.runs import main
from visao_ray.settings import ScannerSettings

if __name__ == "__main__":
    main(ScannerSettings, render_scans)
