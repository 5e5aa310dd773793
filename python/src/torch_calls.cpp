// SPDX-License-Identifier: Apache-2.0
// An eager call of mixgemm.torch.Linear without PyTorch's Module.__call__ and dispatcher, which
// together cost several times the launch. Whoever has asked to see modules or operations does: then
// the answer is None, and the call goes PyTorch's own way.
#include <array>
#include <utility>
#include <vector>

#include "bindings.hpp"
#include "bound_weight.hpp"

namespace mixgemm::python {
namespace {

/// Interned, kept for good.
struct Name {
  explicit Name(const char* text) : object(PyUnicode_InternFromString(text)) {}
  PyObject* object;
};

class TorchCalls {
 public:
  /// module, tensor: the types served, not their subclasses. module_hooks: attributes of a module
  /// that are dicts, empty where nobody watches it; global_hooks: such dicts of all modules.
  /// questions: functions whose answer is true while somebody watches operations; grad_enabled:
  /// such a function for gradients. dual_levels: the dict whose "_current_level" is that of
  /// forward-mode gradients, below 0 without.
  TorchCalls(nb::object module, nb::object tensor, nb::object module_hooks, nb::object global_hooks,
             nb::object questions, nb::object grad_enabled, nb::dict dual_levels)
      : module_(std::move(module)),
        tensor_(std::move(tensor)),
        grad_enabled_(std::move(grad_enabled)),
        dual_levels_(std::move(dual_levels)) {
    for (nb::handle name : module_hooks) module_hooks_.push_back(nb::borrow(name));
    for (nb::handle dict : global_hooks) global_hooks_.push_back(nb::cast<nb::dict>(dict));
    for (nb::handle question : questions) questions_.push_back(nb::borrow(question));
  }

  /// Whether x is a plain tensor and an operation on it concerns nobody else.
  bool is_plain(nb::handle x) const {
    static const Name is_neg("is_neg"), requires_grad("requires_grad"), level("_current_level");
    if (reinterpret_cast<PyObject*>(Py_TYPE(x.ptr())) != tensor_.ptr()) return false;
    for (const nb::object& question : questions_) {
      if (is_true(PyObject_CallNoArgs(question.ptr()))) return false;
    }
    PyObject* dual_level = PyDict_GetItemWithError(dual_levels_.ptr(), level.object);
    if (dual_level == nullptr || PyLong_AsLong(dual_level) >= 0) {
      PyErr_Clear();
      return false;
    }
    if (is_true(PyObject_CallMethodNoArgs(x.ptr(), is_neg.object))) return false;
    return !is_true(PyObject_CallNoArgs(grad_enabled_.ptr())) ||
           !is_true(PyObject_GetAttr(x.ptr(), requires_grad.object));
  }

  /// What module.forward(x) returns for a plain x, or None.
  static nb::object forward(nb::handle module, nb::handle x) {
    return product(attributes_of(module), x);
  }

  /// What module(*args, **kwargs) returns, or None.
  nb::object call(nb::handle module, nb::tuple args, nb::dict kwargs) const {
    static const Name forward("forward"), compiled("_compiled_call_impl");
    if (args.size() != 1 || kwargs.size() != 0 ||
        reinterpret_cast<PyObject*>(Py_TYPE(module.ptr())) != module_.ptr()) {
      return nb::none();
    }
    for (const nb::dict& hooks : global_hooks_) {
      if (hooks.size() != 0) return nb::none();
    }
    const nb::object attributes = attributes_of(module);
    for (const nb::object& name : module_hooks_) {
      PyObject* hooks = PyDict_GetItemWithError(attributes.ptr(), name.ptr());
      if (hooks == nullptr || PyDict_Size(hooks) != 0) {
        PyErr_Clear();
        return nb::none();
      }
    }
    if (PyDict_GetItemWithError(attributes.ptr(), forward.object) != nullptr ||
        PyDict_GetItemWithError(attributes.ptr(), compiled.object) != nullptr) {
      return nb::none();
    }
    const nb::handle x = args[0];
    return is_plain(x) ? product(attributes, x) : nb::none();
  }

  /// For Python's cycle collector: the module's type holds us by its functions' globals.
  static int traverse(PyObject* self, visitproc visit, void* arg) {
    Py_VISIT(Py_TYPE(self));
    if (!nb::inst_ready(self)) return 0;
    const TorchCalls& calls = *nb::inst_ptr<TorchCalls>(self);
    Py_VISIT(calls.module_.ptr());
    Py_VISIT(calls.tensor_.ptr());
    Py_VISIT(calls.grad_enabled_.ptr());
    Py_VISIT(calls.dual_levels_.ptr());
    for (const nb::object& question : calls.questions_) Py_VISIT(question.ptr());
    for (const nb::dict& hooks : calls.global_hooks_) Py_VISIT(hooks.ptr());
    return 0;
  }
  static int clear(PyObject* self) {
    TorchCalls& calls = *nb::inst_ptr<TorchCalls>(self);
    calls.module_.reset();
    calls.tensor_.reset();
    calls.grad_enabled_.reset();
    calls.dual_levels_.reset();
    calls.questions_.clear();
    calls.global_hooks_.clear();
    return 0;
  }

 private:
  static bool is_true(PyObject* owned) {
    if (owned == nullptr) nb::raise_python_error();
    const bool answer = PyObject_IsTrue(owned) == 1;
    Py_DECREF(owned);
    return answer;
  }

  static nb::object attributes_of(nb::handle module) {
    PyObject* found = PyObject_GenericGetDict(module.ptr(), nullptr);
    if (found == nullptr) nb::raise_python_error();
    return nb::steal(found);
  }

  static nb::object product(nb::handle attributes, nb::handle x) {
    static const Name bound_name("_bound"), buffers_name("_buffers");
    PyObject* bound = PyDict_GetItemWithError(attributes.ptr(), bound_name.object);
    PyObject* buffers = PyDict_GetItemWithError(attributes.ptr(), buffers_name.object);
    if (bound == nullptr || buffers == nullptr || !nb::isinstance<BoundWeight>(bound)) {
      return nb::none();
    }
    // Kept: another thread may bind anew while this one multiplies without the GIL.
    const nb::object kept = nb::borrow(bound), kept_buffers = nb::borrow(buffers);
    return nb::inst_ptr<BoundWeight>(kept)->forward(x, kept_buffers);
  }

  nb::object module_, tensor_, grad_enabled_;
  nb::dict dual_levels_;
  std::vector<nb::object> module_hooks_, questions_;
  std::vector<nb::dict> global_hooks_;
};

}  // namespace

void bind_torch_calls(nb::module_& m) {
  static PyType_Slot slots[] = {{Py_tp_traverse, reinterpret_cast<void*>(&TorchCalls::traverse)},
                                {Py_tp_clear, reinterpret_cast<void*>(&TorchCalls::clear)},
                                {0, nullptr}};
  nb::class_<TorchCalls>(m, "TorchCalls", nb::type_slots(slots))
      .def(nb::init<nb::object, nb::object, nb::object, nb::object, nb::object, nb::object,
                    nb::dict>(),
           nb::arg("module"), nb::arg("tensor"), nb::arg("module_hooks"), nb::arg("global_hooks"),
           nb::arg("questions"), nb::arg("grad_enabled"), nb::arg("dual_levels"))
      .def("is_plain", &TorchCalls::is_plain, nb::arg("x"))
      .def_static("forward", &TorchCalls::forward, nb::arg("module"), nb::arg("x"))
      .def("call", &TorchCalls::call, nb::arg("module"), nb::arg("args"), nb::arg("kwargs"));
}

}  // namespace mixgemm::python
