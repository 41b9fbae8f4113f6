"""What the processes of `small.SERVER` begin with, besides svdctl's modules."""

from tests import dots

dots.put()
