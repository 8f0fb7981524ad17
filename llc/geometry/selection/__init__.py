"""The rank of the inverse Hessian from losses alone: the covariance of selected samples."""
