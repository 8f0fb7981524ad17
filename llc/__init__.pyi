from llc.posterior import LocalPosterior as LocalPosterior
from llc.sampling.chains import sample as sample
from llc.sampling.mcmc import HMC as HMC
from llc.sampling.mcmc import MALA as MALA
from llc.sampling.mcmc import NUTS as NUTS
from llc.sampling.preconditioner import Identity as Identity
from llc.sampling.preconditioner import RMSProp as RMSProp
from llc.sampling.sgmcmc import SGLD as SGLD
