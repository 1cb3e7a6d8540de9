#include "explain/gauss_legendre.h"

#include <cmath>
#include <numbers>

namespace headkit {

std::vector<QuadratureNode> gauss_legendre(int count) {
  std::vector<QuadratureNode> nodes;
  for (int i = 0; i < count; ++i) {
    double x = std::cos(std::numbers::pi * (i + 0.75) / (count + 0.5));
    double slope = 1;
    for (int step = 0; step < 100; ++step) {
      double value = 1, before = 0;  // Legendre polynomials of degree k and k - 1 at x
      for (int k = 1; k <= count; ++k) {
        const double next = ((2 * k - 1) * x * value - (k - 1) * before) / k;
        before = value;
        value = next;
      }
      slope = count * (x * value - before) / (x * x - 1);
      const double move = value / slope;
      x -= move;
      if (std::abs(move) < 1e-16) break;
    }
    nodes.push_back({(1 - x) / 2, 1 / ((1 - x * x) * slope * slope)});
  }
  return nodes;
}

}  // namespace headkit
