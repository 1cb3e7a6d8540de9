#include "headkit/core/system.h"

#include <ATen/Parallel.h>

#include <sstream>

#include "headkit/core/version.h"

namespace headkit {

std::string show_config() {
  std::ostringstream text;
  const auto list = [](const std::vector<std::string>& names) {
    std::string joined;
    for (const std::string& name : names) joined += (joined.empty() ? "" : ", ") + name;
    return joined;
  };
  text << "headkit " << HEADKIT_VERSION << "\n"
       << "built with torch " << HEADKIT_TORCH_VERSION << "\n"
       << "compiler " << __VERSION__ << "\n"
       << "instruction set " << active_isa() << " (available: " << list(available_isas()) << ")\n"
       << "backends " << list(available_backends()) << "\n"
       << "threads " << at::get_num_threads() << "\n";
  return text.str();
}

std::vector<std::string> available_isas() { return {"scalar"}; }

std::string active_isa() { return "scalar"; }

std::vector<std::string> available_backends() { return {"cpu", "aten", "reference"}; }

}  // namespace headkit
