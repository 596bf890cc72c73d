from .label_files import FileLabelling as FileLabelling
from .label_files import StreamLabelling as StreamLabelling
from .labelling import PeakLabelling as PeakLabelling
from .labelling import TruthLabelling as TruthLabelling
