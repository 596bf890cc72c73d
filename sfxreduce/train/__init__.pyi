from .label_files import FileLabelling as FileLabelling
from .label_files import StreamLabelling as StreamLabelling
from .labelling import PeakLabelling as PeakLabelling
from .labelling import QuartileLabelling as QuartileLabelling
from .labelling import TruthLabelling as TruthLabelling
from .patches.adapt import needs as needs
