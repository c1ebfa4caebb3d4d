"""SIMD vectors, prefetching and reading columns by their address, which numba does not offer.

A vector has `dim` lanes of float32. LLVM splits it to the registers that the processor has.

LLVM compiles a loop over a row of 16 floats to scalar code, or adds more checks than the loop has work. These vectors
are always compiled to SIMD instructions.

    row = load(weight_RD, index, dim)        16 floats from weight_RD.flat[index]
    row = load_bf16(input_BW, index, dim)    bfloat16 stored as uint16 (or bytes), converted
    row = load_int8(whole_RW, index, dim)    int8 (or bytes), converted
    row = load_int4(whole_RW, index, dim)    two int4 per byte, converted: the low bits are the lanes of the first half
    store(weight_RD, index, a * b + c)       + − × ÷ between vectors of equal length; `fill` repeats a scalar
    total(row)                               sum of the lanes as a fixed tree: the same bits on every processor

`dim` must be known when the kernel is compiled: a literal, a global, or a variable of an enclosing function.
"""

from __future__ import annotations

import operator
from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic, models, overload, register_model

I8, I16, I32, I64, F32 = ir.IntType(8), ir.IntType(16), ir.IntType(32), ir.IntType(64), ir.FloatType()


class Vector(types.Type):
    """`dim` lanes of float32."""

    def __init__(self, dim: int) -> None:
        self.dim = dim
        super().__init__(name=f"float32x{dim}")


@register_model(Vector)
class VectorModel(models.PrimitiveModel):
    """Stored as an LLVM vector."""

    def __init__(self, manager: Any, numba_type: Vector) -> None:
        super().__init__(manager, numba_type, ir.VectorType(F32, numba_type.dim))


def _dim_of(argument: Any) -> int | None:
    return argument.literal_value if isinstance(argument, types.IntegerLiteral) else None


def _constant(builder: Any, element: Any, dim: int, value: int) -> Any:
    return ir.Constant(ir.VectorType(element, dim), [value] * dim)


def _address(context: Any, builder: Any, array_type: Any, array: Any, index: Any, element: Any, dim: int) -> Any:
    data = context.make_array(array_type)(context, builder, array).data
    return builder.bitcast(builder.gep(data, [index]), ir.VectorType(element, dim).as_pointer())


@intrinsic(prefer_literal=True)
def load(typing_context, array, index, dim):
    """`dim` float32, starting at array.flat[index]."""
    if (lanes := _dim_of(dim)) is None:
        return None

    def codegen(context, builder, signature, args):
        # A row begins at any multiple of a float; by default LLVM expects the whole vector's alignment and may crash.
        return builder.load(_address(context, builder, signature.args[0], args[0], args[1], F32, lanes), align=4)

    return Vector(lanes)(array, types.intp, dim), codegen


@intrinsic(prefer_literal=True)
def load_bf16(typing_context, array, index, dim):
    """`dim` bfloat16, starting at array.flat[index], converted to float32."""
    if (lanes := _dim_of(dim)) is None:
        return None

    def codegen(context, builder, signature, args):
        bits = builder.load(_address(context, builder, signature.args[0], args[0], args[1], I16, lanes), align=2)
        # bfloat16 is the upper half of a float32, so that a shift is the whole conversion.
        wide = builder.shl(builder.zext(bits, ir.VectorType(I32, lanes)), _constant(builder, I32, lanes, 16))
        return builder.bitcast(wide, ir.VectorType(F32, lanes))

    return Vector(lanes)(array, types.intp, dim), codegen


@intrinsic(prefer_literal=True)
def load_int8(typing_context, array, index, dim):
    """`dim` int8, starting at byte array.flat[index], converted to float32."""
    if (lanes := _dim_of(dim)) is None:
        return None

    def codegen(context, builder, signature, args):
        whole = builder.load(_address(context, builder, signature.args[0], args[0], args[1], I8, lanes), align=1)
        return builder.sitofp(whole, ir.VectorType(F32, lanes))

    return Vector(lanes)(array, types.intp, dim), codegen


@intrinsic(prefer_literal=True)
def load_int4(typing_context, array, index, dim):
    """`dim` int4 in ceil(dim / 2) bytes, starting at byte array.flat[index], converted to float32."""
    if (lanes := _dim_of(dim)) is None:
        return None

    def codegen(context, builder, signature, args):
        half = (lanes + 1) // 2
        both = builder.load(_address(context, builder, signature.args[0], args[0], args[1], I8, half), align=1)
        four = _constant(builder, I8, half, 4)
        # Arithmetic shifts carry the sign of each int4 into its byte.
        low, high = builder.ashr(builder.shl(both, four), four), builder.ashr(both, four)
        whole = builder.shuffle_vector(low, high, ir.VectorType(I32, lanes)(list(range(lanes))))
        return builder.sitofp(whole, ir.VectorType(F32, lanes))

    return Vector(lanes)(array, types.intp, dim), codegen


@intrinsic
def store(typing_context, array, index, value):
    """Writes a vector to array.flat[index : index + dim]."""

    def codegen(context, builder, signature, args):
        dim = signature.args[2].dim
        builder.store(args[2], _address(context, builder, signature.args[0], args[0], args[1], F32, dim), align=4)
        return context.get_dummy_value()

    return types.void(array, types.intp, value), codegen


@intrinsic
def store_bf16(typing_context, array, index, value):
    """Writes a vector as bfloat16, rounded to the nearest (ties to even). Values must be finite."""

    def codegen(context, builder, signature, args):
        dim = signature.args[2].dim
        bits = builder.bitcast(args[2], ir.VectorType(I32, dim))
        # Adding 0x7FFF, and 1 more where the kept part is odd, carries exactly where rounding half to even goes up.
        odd = builder.and_(builder.lshr(bits, _constant(builder, I32, dim, 16)), _constant(builder, I32, dim, 1))
        bits = builder.add(bits, builder.add(odd, _constant(builder, I32, dim, 0x7FFF)))
        half = builder.trunc(builder.lshr(bits, _constant(builder, I32, dim, 16)), ir.VectorType(I16, dim))
        builder.store(half, _address(context, builder, signature.args[0], args[0], args[1], I16, dim), align=2)
        return context.get_dummy_value()

    return types.void(array, types.intp, value), codegen


@intrinsic(prefer_literal=True)
def fill(typing_context, value, dim):
    """A vector whose lanes all have this value."""
    if (lanes := _dim_of(dim)) is None:
        return None

    def codegen(context, builder, signature, args):
        vector_type = ir.VectorType(F32, lanes)
        first = builder.insert_element(ir.Constant(vector_type, ir.Undefined), args[0], I32(0))
        zeros = ir.Constant(ir.VectorType(I32, lanes), [0] * lanes)
        return builder.shuffle_vector(first, ir.Constant(vector_type, ir.Undefined), zeros)

    return Vector(lanes)(types.float32, dim), codegen


@intrinsic
def total(typing_context, value):
    """Sum of the lanes: one half is added to the other, repeatedly. A lane that is left over is added at the end."""

    def codegen(context, builder, signature, args):
        vector, lanes = args[0], signature.args[0].dim
        left_over = []
        undefined = ir.Undefined
        while lanes > 1:
            if lanes % 2:
                left_over.append(builder.extract_element(vector, I32(lanes - 1)))
            half = lanes // 2
            # A tree of halves, and not LLVM's own reduction, whose order depends on the processor's vector width.
            pick = ir.VectorType(I32, half)
            low = builder.shuffle_vector(vector, ir.Constant(vector.type, undefined), pick(list(range(half))))
            high = builder.shuffle_vector(
                vector, ir.Constant(vector.type, undefined), pick(list(range(half, 2 * half)))
            )
            vector, lanes = builder.fadd(low, high), half
        result = builder.extract_element(vector, I32(0))
        for lane in left_over:
            result = builder.fadd(result, lane)
        return result

    return types.float32(value), codegen


@intrinsic
def root(typing_context, value):
    """The square root of each lane."""

    def codegen(context, builder, signature, args):
        vector_type = args[0].type
        name = f"llvm.sqrt.v{signature.args[0].dim}f32"
        function = cgutils.get_or_insert_function(builder.module, ir.FunctionType(vector_type, [vector_type]), name)
        return builder.call(function, [args[0]])

    return value(value), codegen


def _binary(instruction: str) -> Any:
    @intrinsic
    def operate(typing_context, left, right):
        def codegen(context, builder, signature, args):
            return getattr(builder, instruction)(args[0], args[1])

        return left(left, right), codegen

    return operate


_add, _subtract, _multiply, _divide = _binary("fadd"), _binary("fsub"), _binary("fmul"), _binary("fdiv")


@overload(operator.add)
def _overload_add(a, b):
    return (lambda a, b: _add(a, b)) if isinstance(a, Vector) and a == b else None


@overload(operator.sub)
def _overload_sub(a, b):
    return (lambda a, b: _subtract(a, b)) if isinstance(a, Vector) and a == b else None


@overload(operator.mul)
def _overload_mul(a, b):
    return (lambda a, b: _multiply(a, b)) if isinstance(a, Vector) and a == b else None


@overload(operator.truediv)
def _overload_div(a, b):
    return (lambda a, b: _divide(a, b)) if isinstance(a, Vector) and a == b else None


ZERO = np.float32(0)


@intrinsic
def prefetch(typing_context, array, index):
    """Loads the cache line of `array.flat[index]` (C-contiguous) before it is used."""

    def codegen(context, builder, signature, args):
        array_type = signature.args[0]
        data = context.make_array(array_type)(context, builder, args[0]).data
        address = builder.bitcast(builder.gep(data, [args[1]]), ir.IntType(8).as_pointer())
        int32 = ir.IntType(32)
        function_type = ir.FunctionType(ir.VoidType(), [ir.IntType(8).as_pointer(), int32, int32, int32])
        function = cgutils.get_or_insert_function(builder.module, function_type, "llvm.prefetch.p0i8")
        builder.call(function, [address, int32(0), int32(3), int32(1)])  # read, keep in all levels, data
        return context.get_dummy_value()

    return types.void(array, types.intp), codegen


@intrinsic
def load_int64(typing_context, address, index):
    """`((int64_t *) address)[index]`. One compiled kernel can thus read any number of columns without copying them."""

    def codegen(context, builder, signature, args):
        pointer = builder.inttoptr(args[0], ir.IntType(64).as_pointer())
        return builder.load(builder.gep(pointer, [args[1]]))

    return types.int64(types.int64, types.intp), codegen


@intrinsic
def load_float32(typing_context, address, index):
    """`((float *) address)[index]`; see load_int64."""

    def codegen(context, builder, signature, args):
        pointer = builder.inttoptr(args[0], ir.FloatType().as_pointer())
        return builder.load(builder.gep(pointer, [args[1]]))

    return types.float32(types.int64, types.intp), codegen


@intrinsic
def matches(typing_context, array, index, value):
    """A bit mask of the i < 8 for which array.flat[index + i] == value (int64)."""

    def codegen(context, builder, signature, args):
        # 8 words: the four entries of a bucket, one cache line.
        undefined = ir.Constant(ir.VectorType(I64, 8), ir.Undefined)
        lanes = builder.load(_address(context, builder, signature.args[0], args[0], args[1], I64, 8), align=8)
        first = builder.insert_element(undefined, args[2], I32(0))
        all_equal = builder.shuffle_vector(first, undefined, ir.Constant(ir.VectorType(I32, 8), [0] * 8))
        return builder.zext(builder.bitcast(builder.icmp_signed("==", lanes, all_equal), I8), I64)

    return types.int64(array, types.intp, types.int64), codegen


@intrinsic
def lowest_bit(typing_context, bits):
    """The index of the lowest bit that is set. At least one must be."""

    def codegen(context, builder, signature, args):
        count_type = ir.FunctionType(I64, [I64, ir.IntType(1)])
        count = cgutils.get_or_insert_function(builder.module, count_type, "llvm.cttz.i64")
        return builder.call(count, [args[0], ir.IntType(1)(1)])  # 1: undefined for 0, which saves a branch

    return types.int64(types.int64), codegen
