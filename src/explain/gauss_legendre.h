#pragma once

#include <vector>

namespace headkit {

struct QuadratureNode {
  double place = 0;  ///< in (0, 1)
  double weight = 0;
};

/// Nodes of an integral from 0 to 1, exact for polynomials of degree 2n - 1. Source: Gauss 1814.
std::vector<QuadratureNode> gauss_legendre(int count);

}  // namespace headkit
