from .posterior import LocalPosterior as LocalPosterior
from .sampling.chains import sample as sample
from .sampling.mcmc import HMC as HMC
from .sampling.mcmc import MALA as MALA
from .sampling.mcmc import NUTS as NUTS
from .sampling.preconditioner import Identity as Identity
from .sampling.preconditioner import RMSProp as RMSProp
from .sampling.sgmcmc import SGLD as SGLD
