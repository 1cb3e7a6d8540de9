#pragma once

#include <headkit/models/batch.h>
#include <torch/csrc/utils/pybind.h>

#include <memory>

namespace headkit::bindings {

/// One batch from any mapping of names to tensors; entries that are None are left out. Throws
/// std::invalid_argument on anything else. Needs the GIL.
Batch batch_from_python(pybind11::handle mapping);

/// A data source over a Python object that can be iterated again and again: a list of batches, a
/// torch DataLoader. A DataSource is taken as it is. Throws std::invalid_argument on an iterator,
/// which would be empty the second time. Needs the GIL; the source itself takes it only to fetch a
/// batch.
std::shared_ptr<DataSource> data_from_python(pybind11::object batches);

/// Lets every bound function that takes a DataSource take whatever `data_from_python` takes. What
/// it refuses raises the same error as soon as the function walks the data. Call once, after
/// DataSource is registered.
void accept_as_data(pybind11::module_& m);

}  // namespace headkit::bindings
