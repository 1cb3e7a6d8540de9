#include "python_data.h"

#include <headkit/core/error.h>
#include <torch/csrc/autograd/python_variable.h>

#include <typeinfo>

namespace py = pybind11;

namespace headkit::bindings {
namespace {

std::string type_name(py::handle object) { return py::str(py::type::of(object).attr("__name__")); }

// Holds a Python object and may be destroyed by a thread without the GIL.
class PythonReference {
 public:
  explicit PythonReference(py::object object) : object_(std::move(object)) {}
  PythonReference(const PythonReference&) = delete;
  PythonReference& operator=(const PythonReference&) = delete;
  ~PythonReference() {
    py::gil_scoped_acquire gil;
    object_ = py::object();
  }
  const py::object& get() const { return object_; }

 private:
  py::object object_;
};

class PythonData final : public DataSource {
 public:
  explicit PythonData(py::object batches) : batches_(std::move(batches)) {}

  void for_each(const std::function<void(const Batch&)>& visit) const override {
    py::gil_scoped_acquire gil;
    for (py::handle item : py::iter(batches_.get())) {
      const Batch batch = batch_from_python(item);
      {
        py::gil_scoped_release unlocked;
        visit(batch);
      }
      if (PyErr_CheckSignals() != 0) throw py::error_already_set();
    }
  }

  std::optional<int64_t> size() const override {
    py::gil_scoped_acquire gil;
    const py::ssize_t length = PyObject_LengthHint(batches_.get().ptr(), -1);
    if (PyErr_Occurred() != nullptr) PyErr_Clear();
    return length < 0 ? std::nullopt : std::optional<int64_t>(length);
  }

 private:
  PythonReference batches_;
};

// Stands for an object that is no source of batches, and says so when walked.
class RefusedData final : public DataSource {
 public:
  explicit RefusedData(std::string reason) : reason_(std::move(reason)) {}
  void for_each(const std::function<void(const Batch&)>&) const override {
    throw std::invalid_argument(reason_);
  }
  std::optional<int64_t> size() const override { return std::nullopt; }

 private:
  std::string reason_;
};

// An exception in a converter would surface as "incompatible function arguments", without a reason.
PyObject* to_data_source(PyObject* object, PyTypeObject*) {
  std::shared_ptr<DataSource> source;
  try {
    source = data_from_python(py::reinterpret_borrow<py::object>(object));
  } catch (const std::invalid_argument& error) {
    source = std::make_shared<RefusedData>(error.what());
  }
  return py::cast(source).release().ptr();
}

}  // namespace

void accept_as_data(py::module_& m) {
  py::detail::get_type_info(typeid(DataSource), true)
      ->implicit_conversions.push_back(&to_data_source);
}

Batch batch_from_python(py::handle mapping) {
  HEADKIT_CHECK(py::hasattr(mapping, "keys") && py::hasattr(mapping, "__getitem__"), "data",
                "batches that map names to tensors", "a batch of type ", type_name(mapping));
  Batch batch;
  for (py::handle key : mapping.attr("keys")()) {
    const py::object value = mapping.attr("__getitem__")(key);
    if (value.is_none()) continue;
    HEADKIT_CHECK(py::isinstance<py::str>(key), "data", "names of tensors", "a key of type ",
                  type_name(key));
    const std::string name = py::cast<std::string>(key);
    HEADKIT_CHECK(THPVariable_Check(value.ptr()), "data",
                  "tensors (leave out or convert what is none)",
                  "'" + name + "' of type " + type_name(value));
    batch[name] = py::cast<at::Tensor>(value);
  }
  batch_size(batch);
  return batch;
}

std::shared_ptr<DataSource> data_from_python(py::object batches) {
  if (py::isinstance<DataSource>(batches)) return py::cast<std::shared_ptr<DataSource>>(batches);
  HEADKIT_CHECK(!(py::hasattr(batches, "keys") && py::hasattr(batches, "__getitem__")), "data",
                "a list of batches", "one batch: write [batch]");
  HEADKIT_CHECK(py::hasattr(batches, "__iter__"), "data",
                "batches that can be iterated (a list, a DataLoader)", type_name(batches));
  // iter(x) is x: an iterator, empty after one walk. Asking would start a DataLoader's workers, and
  // only iterators have __next__.
  HEADKIT_CHECK(!py::hasattr(batches, "__next__"), "data",
                "batches that can be iterated again (a list, a DataLoader), because methods walk "
                "the data more than once",
                "an iterator of type " + type_name(batches) + ": write list(...)");
  return std::make_shared<PythonData>(std::move(batches));
}

}  // namespace headkit::bindings
