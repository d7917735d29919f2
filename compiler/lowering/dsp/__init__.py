"""Hexagon DSPs with HVX, vectors of 128 bytes: networks of bytes, in QDQ form, as vector code.

The vectors have no floating point. Layers between integers multiply bytes by `vrmpy`, four products into each of 32
sums, and make bytes of the sums in fixed point (`fixed.py`): at most one step from what floats round to. Whatever is
left in floats runs on the scalar core, one value at a time, in the loops of CPUs.

Images are in blocks of 32 channels, NCHW32c, so that four neighbouring pixels of a block fill a vector.

A compile leaves module.o: the whole network as one object that asks for little (`link.py` says for what). It is linked
into a program for QEMU here, and with the vendor's SDK into the library that a board loads.
"""
