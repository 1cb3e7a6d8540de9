#include <headkit/distributed/shared_walks.h>
#include <headkit/distributed/torch_collective.h>

#include <memory>

#include "tensor_binding.h"

namespace py = pybind11;

namespace headkit::bindings {
namespace {

using Unlocked = py::call_guard<py::gil_scoped_release>;

// A scope of C++ that Python ends.
template <typename Scope>
struct Open {
  std::unique_ptr<Scope> scope;
  void close() { scope.reset(); }
};

}  // namespace

void register_distributed(py::module_& m) {
  using OpenSharing = Open<SharedWalks>;
  using OpenJournal = Open<JournaledWalks>;
  py::class_<OpenSharing>(m, "SharedWalks", "Walks that are shared until ``close``.")
      .def(
          py::init([](const std::string& group_name, c10::Device device) {
            return OpenSharing{std::make_unique<SharedWalks>(torch_collective(group_name, device))};
          }),
          py::arg("group_name"), py::arg("device"), "As headkit.shared_work.")
      .def("close", &OpenSharing::close, "End it; more than once does nothing.");
  py::class_<OpenJournal>(m, "JournaledWalks", "Walks that a journal keeps until ``close``.")
      .def(py::init([](const std::string& path, const std::string& identity) {
             return OpenJournal{
                 std::make_unique<JournaledWalks>(std::make_shared<WalkJournal>(path, identity))};
           }),
           py::arg("path"), py::arg("identity"), Unlocked(),
           "The journal of the job ``identity``, at a path.")
      .def("close", &OpenJournal::close, "End it; more than once does nothing.");
}

}  // namespace headkit::bindings
