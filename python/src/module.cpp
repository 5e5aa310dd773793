// SPDX-License-Identifier: Apache-2.0
// The extension module mixgemm._core. It is the package's private side: arguments are checked here,
// defaults and frameworks are the business of the Python files.
#include "bindings.hpp"
#include "mixgemm/version.hpp"

namespace mixgemm::python {
namespace {

/// Raises the class of mixgemm._errors that belongs to the code, with the library's sentence.
void translate(const std::exception_ptr& thrown, void*) {
  try {
    std::rethrow_exception(thrown);
  } catch (const Error& error) {
    const nb::object make = nb::module_::import_("mixgemm._errors").attr("error_for");
    const std::string_view code = to_string(error.code());
    const nb::object exception = make(nb::str(code.data(), code.size()), error.what());
    PyErr_SetObject(exception.type().ptr(), exception.ptr());
  }
}

}  // namespace
}  // namespace mixgemm::python

NB_MODULE(_core, m) {
  using namespace mixgemm::python;
  m.doc() = "mixgemm's C++ library, bound. Private: use the functions of the package mixgemm.";
  // PyTorch's caches may keep modules beyond the interpreter's end, which is no fault to report.
  nb::set_leak_warnings(false);
  m.def(
      "set_leak_warnings", [](bool on) { nb::set_leak_warnings(on); }, nb::arg("on"));
  nb::register_exception_translator(translate);
  m.attr("version") = mixgemm::version();
  m.attr("has_cuda") = static_cast<bool>(MIXGEMM_HAS_CUDA);
  bind_weight(m);
  bind_gemm(m);
  bind_scratch(m);
  bind_bound_weight(m);
  bind_torch_calls(m);
  bind_checkpoint(m);
  bind_tuning(m);
}
