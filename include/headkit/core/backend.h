#pragma once

#include <string>

namespace headkit {

/// The backend that an operator takes for a call: "cpu", "aten" ... and why.
struct BackendChoice {
  std::string name;
  std::string reason;
};

/// Forgets all packed weights. Needed after an edit that torch does not count: `.data`, numpy
/// views.
void refresh_packed_weights();

}  // namespace headkit
