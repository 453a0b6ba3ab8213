"""The simulated five-centre cohort: anatomy and tumour, the scanners of Table 1, and the truth."""
